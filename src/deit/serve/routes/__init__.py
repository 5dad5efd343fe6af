"""The routes of the server; each file returns its own from `routes(state)`."""
