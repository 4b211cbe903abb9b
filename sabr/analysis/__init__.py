"""Studies of the paper, each giving a tidy table."""
