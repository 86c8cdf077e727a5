"""Models side by side on one page, where people vote blindly, and what their votes come to."""
