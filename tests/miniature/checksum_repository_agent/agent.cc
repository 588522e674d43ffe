int Check() { return 1; }
