"""The process of the server: its port, its connections, its end, and several of them."""
