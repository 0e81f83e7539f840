"""`aift data doctor`: what is wrong with training data, by name and place; repaired only where it is asked for."""
