"""Files for other engines, and those engines driven from Python."""
