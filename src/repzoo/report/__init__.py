"""Reports rendered from Records: model cards, and the tables of documents."""
