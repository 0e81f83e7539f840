"""What the processes send each other."""
