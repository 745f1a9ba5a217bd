"""What a person (or with --json a program) sees: options, output, and one view for each verb's result."""
