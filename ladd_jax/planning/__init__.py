"""What a step needs on chips that are not here."""
