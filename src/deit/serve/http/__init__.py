"""What happens to every request before a route sees it, and how its body becomes images."""
