"""The other models of the family, trained in minutes on data that needs no download, and measured."""
