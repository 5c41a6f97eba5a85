"""What gemedge costs, each figure beside its peer in the same run: `make bench`, or one file of it at a time."""
