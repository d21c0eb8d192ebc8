"""Where images come from: folders, lists, archives, tables, arrays; names, labels, and what is left out."""
