int Resolve() { return 1; }
