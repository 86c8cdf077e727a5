"""A page that shows what a student makes while its prompt is typed."""
