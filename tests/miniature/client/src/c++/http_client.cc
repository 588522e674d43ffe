#include "http_client.h"
int Infer() { return 1; }
