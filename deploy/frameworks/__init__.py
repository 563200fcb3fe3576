"""Networks of other frameworks: weights, classes and preprocessing read from their own files."""
