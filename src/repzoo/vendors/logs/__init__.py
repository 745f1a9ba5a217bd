"""What vendors' tools print, as dataclasses: one module for each tool.

Every parser takes the bytes of a file, whose size `repzoo.storage.read_bounded` has limited.
Nothing in a log is executed, and no path in it is opened.
"""
