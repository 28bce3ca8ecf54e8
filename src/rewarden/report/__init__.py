"""HTML pages, made from numbers that others computed."""
