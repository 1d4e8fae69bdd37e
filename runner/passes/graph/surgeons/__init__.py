"""What GraphSurgeries can do to a graph: one class a surgeon, its fields the options, one module a theme."""
