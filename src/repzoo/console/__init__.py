"""What a person, or with --json a program, sees: commands, options, output, and views of
results.
"""
