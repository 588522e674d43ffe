// A server in small: it answers what a Triton without models is asked, on loopback.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdlib>
#include <iostream>
#include <map>
#include <string>
#include <thread>

const char* Version();
int Json();
int Resolve();

namespace {

int Listen(int port) {
  const int listener = socket(AF_INET, SOCK_STREAM, 0);
  const int yes = 1;
  setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  inet_pton(AF_INET, "127.0.0.1", &address.sin_addr);
  if (bind(listener, reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0) {
    std::cerr << "error: cannot bind port " << port << std::endl;
    std::exit(1);
  }
  listen(listener, 8);
  return listener;
}

std::string Answer(const std::string& request) {
  const std::string path = request.substr(4, request.find(' ', 4) - 4);
  if (path == "/v2") {
    return std::string("{\"name\":\"triton\",\"version\":\"") + Version() +
           "\",\"extensions\":[\"statistics\"]}";
  }
  if (path == "/metrics") return "# TYPE nv_requests counter\nnv_requests 0\n";
  return "";
}

void Serve(int listener) {
  for (;;) {
    const int connection = accept(listener, nullptr, nullptr);
    char buffer[4096];
    const auto size = read(connection, buffer, sizeof(buffer));
    if (size > 4) {
      const std::string body = Answer(std::string(buffer, size));
      const std::string answer = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: " +
                                 std::to_string(body.size()) + "\r\n\r\n" + body;
      if (write(connection, answer.data(), answer.size()) < 0) std::cerr << "lost" << std::endl;
    }
    close(connection);
  }
}

}  // namespace

int main(int count, char** arguments) {
  std::map<std::string, std::string> options;
  for (int n = 1; n < count; ++n) {
    const std::string argument = arguments[n];
    options[argument.substr(0, argument.find('='))] = argument.substr(argument.find('=') + 1);
  }
  if (Json() + Resolve() != 2) return 3;
  if (options.count("--help")) {
    std::cout << "Usage: tritonserver [options]\n  --http-port <integer>\n  --help\n";
    return 1;
  }
  std::thread(Serve, Listen(std::stoi(options["--metrics-port"]))).detach();
  Serve(Listen(std::stoi(options["--http-port"])));
}
