"""Where images lie and what is remembered of them."""
