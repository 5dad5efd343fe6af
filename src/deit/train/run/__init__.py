"""What a training writes, and reads to go on."""
