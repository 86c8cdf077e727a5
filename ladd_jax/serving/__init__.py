"""A page that shows what a student makes while its prompt is typed."""

import os

# Must be set before gradio is imported: stops it from sending analytics and checking for updates.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
