"""What every command shares: printing, options, errors."""
