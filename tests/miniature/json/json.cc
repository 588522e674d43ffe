int Json() { return 1; }
