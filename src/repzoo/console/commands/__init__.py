"""The commands of `repzoo`, one function each: options to settings, a verb, a view."""
