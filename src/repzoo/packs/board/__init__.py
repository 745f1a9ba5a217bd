"""Programs that packs ship. They run on a board, without repzoo: numpy, OpenCV and its runtime."""
