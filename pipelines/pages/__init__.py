"""HTML pages for people: templates, and what fills them."""
