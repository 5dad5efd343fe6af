"""What each format writes, and how its files are run to check them."""
