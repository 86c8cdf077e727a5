"""A page that shows what a student makes while its prompt is typed."""

import os

# Read as gradio is imported: it tells its makers nothing, and asks for no newer version.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
