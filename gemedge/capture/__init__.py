"""Reading model files that nobody vouches for: no code of a file runs here."""
