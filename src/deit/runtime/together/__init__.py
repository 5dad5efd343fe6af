"""What several processes must know of each other: that all live, and that all began alike."""
