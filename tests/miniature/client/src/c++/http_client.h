int Infer();
