const char* Version() { return "9.1.0"; }
