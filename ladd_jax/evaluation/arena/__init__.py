"""A page with models side by side on which people vote blindly, and the scoring of their votes."""
