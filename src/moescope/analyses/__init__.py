"""One folder per question; `registry` lists them, `base` says what each has."""
