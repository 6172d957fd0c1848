"""What the user meets: panels, operators, settings, preferences."""
