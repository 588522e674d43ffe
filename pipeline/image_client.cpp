// The C++ image classification client (recipe step 6): sends a preprocessed image to a Triton
// server over HTTP and prints the classes that the model finds in it.
//
// `nox -s preprocess` writes the image, `nox -s build_image_client` compiles this file. Failures
// end with the exit codes of the Python jobs, see `python -m pipeline --help`.

#include <getopt.h>
#include <rapidjson/document.h>

#include <charconv>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <limits>
#include <map>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

#include "http_client.h"

namespace tc = triton::client;

namespace {

enum ExitCode {
  kDone = 0,
  kUsage = 2,
  kStorage = 13,
  kServerUnreachable = 32,
  kModelNotServed = 33,
  kRefused = 34,
  kNotAnImage = 40,
  kDefect = 70,
};

constexpr char kHelp[] =
    R"(usage: image_client [-u HOST:PORT] [-c N] [-x VERSION] [-v] MODEL FILE.dat

Have a model that Triton serves name what is in an image. FILE.dat holds the model's input for one
image, without its batch dimension: `nox -s preprocess -- photo.jpg photo.dat` writes one.

  -u HOST:PORT  the server's HTTP address (default: localhost:8000)
  -c N          how many classes to print (default: 5)
  -x VERSION    the model's version (default: the one that the server chooses)
  -v            print what goes over the wire
  -h, --help    print this

exit codes:
   0  done
   2  wrong usage, or the model takes something else than one image
  13  the answer could not be written
  32  no Triton server answers
  33  the server does not serve the model
  34  the server refuses the request
  40  the file cannot be read, or is not of the input's size
)";

// A failure for the user: what failed, what to do, and the exit code.
class Failure : public std::runtime_error {
 public:
  Failure(ExitCode code, const std::string& what, std::string fix)
      : std::runtime_error(what), code_(code), fix_(std::move(fix)) {}
  ExitCode code() const { return code_; }
  const std::string& fix() const { return fix_; }

 private:
  ExitCode code_;
  std::string fix_;
};

struct Options {
  std::string url = "localhost:8000";
  size_t classes = 5;
  std::string version;
  bool verbose = false;
  bool help = false;
  std::string model;
  std::string file;
};

// What the server says of a model: one input, whose shape is that of a request for one image.
struct Model {
  std::string input;
  std::string datatype;
  std::vector<int64_t> shape;
  std::string output;
};

// https://github.com/kserve/kserve/blob/master/docs/predict-api/v2/required_api.md
const std::map<std::string, uint64_t> kBytes = {
    {"BOOL", 1},  {"UINT8", 1}, {"UINT16", 2}, {"UINT32", 4}, {"UINT64", 8}, {"INT8", 1},
    {"INT16", 2}, {"INT32", 4}, {"INT64", 8},  {"FP16", 2},   {"BF16", 2},   {"FP32", 4},
    {"FP64", 8}};

Failure Usage(const std::string& what) { return {kUsage, what, "see `image_client --help`"}; }

size_t ParseClasses(const std::string& text) {
  // Triton takes it as a 32-bit number.
  uint32_t number = 0;
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, number);
  if (error != std::errc() || stop != end || number < 1) {
    throw Usage("'" + text + "' is not a number of classes: a whole number from 1");
  }
  return number;
}

Options ParseOptions(int argc, char** argv) {
  const option long_options[] = {{"help", no_argument, nullptr, 'h'}, {}};
  Options options;
  opterr = 0;
  int letter = 0;
  while ((letter = getopt_long(argc, argv, ":u:c:x:vh", long_options, nullptr)) != -1) {
    switch (letter) {
      case 'u':
        options.url = optarg;
        break;
      case 'c':
        options.classes = ParseClasses(optarg);
        break;
      case 'x':
        options.version = optarg;
        break;
      case 'v':
        options.verbose = true;
        break;
      case 'h':
        options.help = true;
        return options;
      case ':':
        throw Usage(std::string("-") + static_cast<char>(optopt) + " lacks its value");
      default:
        throw Usage("there is no option " + std::string(argv[optind - 1]));
    }
  }
  if (argc - optind != 2) {
    throw Usage("a model and a file are needed, and " + std::to_string(argc - optind) +
                " arguments were given");
  }
  options.model = argv[optind];
  options.file = argv[optind + 1];
  return options;
}

// RapidJSON ends the program where a document is not what was expected, so each step is looked at.
const rapidjson::Value* Member(const rapidjson::Value& object, const char* name) {
  if (!object.IsObject()) return nullptr;
  const auto found = object.FindMember(name);
  return found == object.MemberEnd() ? nullptr : &found->value;
}

std::string Text(const rapidjson::Value& object, const char* name) {
  const rapidjson::Value* value = Member(object, name);
  return value && value->IsString() ? value->GetString() : "";
}

rapidjson::Document Parse(const std::string& json, const std::string& what) {
  rapidjson::Document document;
  document.Parse(json.c_str(), json.size());
  if (document.HasParseError() || !document.IsObject()) {
    throw Failure(kServerUnreachable, "the server's " + what + " is no JSON object",
                  "make sure that -u names a Triton server");
  }
  return document;
}

const rapidjson::Value& OnlyTensor(const rapidjson::Document& metadata, const char* kind,
                                   const std::string& model) {
  const rapidjson::Value* tensors = Member(metadata, kind);
  const size_t count = tensors && tensors->IsArray() ? tensors->Size() : 0;
  if (count != 1) {
    throw Failure(kUsage, model + " has " + std::to_string(count) + " " + kind + ", and not one",
                  "name an image classifier");
  }
  return (*tensors)[0];
}

std::string ToText(const std::vector<int64_t>& shape) {
  std::ostringstream text;
  for (const int64_t size : shape) text << (text.tellp() > 0 ? ", " : "") << size;
  return "[" + text.str() + "]";
}

Model ReadModel(const rapidjson::Document& metadata, const rapidjson::Document& config,
                const std::string& name) {
  const rapidjson::Value& input = OnlyTensor(metadata, "inputs", name);
  const rapidjson::Value& output = OnlyTensor(metadata, "outputs", name);
  Model model{Text(input, "name"), Text(input, "datatype"), {}, Text(output, "name")};
  const rapidjson::Value* shape = Member(input, "shape");
  if (shape && shape->IsArray()) {
    for (const auto& size : shape->GetArray()) {
      model.shape.push_back(size.IsInt64() ? size.GetInt64() : -1);
    }
  }
  // With batches the first dimension is theirs, and this is a batch of one.
  const rapidjson::Value* batch = Member(config, "max_batch_size");
  if (batch && batch->IsInt64() && batch->GetInt64() > 0 && !model.shape.empty()) {
    model.shape.front() = 1;
  }
  return model;
}

// The size of the input in bytes.
uint64_t InputBytes(const Model& model, const std::string& name) {
  const auto bytes = kBytes.find(model.datatype);
  if (bytes == kBytes.end()) {
    throw Failure(kUsage, name + " takes " + model.datatype + ", whose values have no fixed size",
                  "name an image classifier");
  }
  uint64_t total = bytes->second;
  for (const int64_t size : model.shape) {
    if (size < 1 || static_cast<uint64_t>(size) > std::numeric_limits<int64_t>::max() / total) {
      throw Failure(kUsage, name + " takes inputs of any size: " + ToText(model.shape),
                    "name a model whose input has a fixed shape");
    }
    total *= static_cast<uint64_t>(size);
  }
  return total;
}

// The file, which has to hold the input and nothing else. It is little-endian, as is every host
// that Triton runs on.
std::vector<uint8_t> ReadInput(const std::string& file, uint64_t bytes, const Model& model,
                               const std::string& name) {
  std::error_code error;
  if (!std::filesystem::is_regular_file(file, error)) {
    const std::string why = error ? error.message() : "it is not a regular file";
    throw Failure(kNotAnImage, "'" + file + "' cannot be read: " + why, "check the path");
  }
  const uint64_t size = std::filesystem::file_size(file, error);
  if (error || size != bytes) {
    throw Failure(kNotAnImage,
                  "'" + file + "' holds " + std::to_string(error ? 0 : size) +
                      " bytes, and the input of " + name + " takes " + std::to_string(bytes) +
                      ": " + model.datatype + " " + ToText(model.shape),
                  "write it for this model: `nox -s preprocess -- -m " + name + " PHOTO FILE.dat`");
  }
  std::vector<uint8_t> data(size);
  std::ifstream stream(file, std::ios::binary);
  if (!stream.read(reinterpret_cast<char*>(data.data()), static_cast<std::streamsize>(size))) {
    throw Failure(kNotAnImage, "'" + file + "' cannot be read", "make it readable");
  }
  return data;
}

// `score:index:LABEL` of Triton's classification extension as the recipe prints it.
std::string Line(std::string_view text) {
  std::string line = "    ";
  const size_t index = text.find(':');
  if (index == std::string_view::npos) return line.append(text);
  const size_t label = text.find(':', index + 1);
  line.append(text.substr(0, index)).append(" (");
  line.append(text.substr(index + 1, label - index - 1)).append(")");
  if (label != std::string_view::npos) line.append(" = ").append(text.substr(label + 1));
  return line;
}

void Classify(const Options& options) {
  const std::string start = "start one (`nox -s serve`), or name another with -u HOST:PORT";
  std::unique_ptr<tc::InferenceServerHttpClient> client;
  tc::Error error = tc::InferenceServerHttpClient::Create(&client, options.url, options.verbose);
  bool live = false;
  if (error.IsOk()) error = client->IsServerLive(&live);
  if (!error.IsOk() || !live) {
    throw Failure(kServerUnreachable,
                  "no Triton server answers at " + options.url +
                      (error.IsOk() ? std::string() : ": " + error.Message()),
                  start);
  }

  std::string metadata;
  std::string config;
  error = client->ModelMetadata(&metadata, options.model, options.version);
  if (error.IsOk()) error = client->ModelConfig(&config, options.model, options.version);
  if (!error.IsOk()) {
    throw Failure(kModelNotServed,
                  "the server at " + options.url + " does not serve " + options.model +
                      (options.version.empty() ? "" : " version " + options.version) + ": " +
                      error.Message(),
                  "see what is served: `nox -s status`");
  }
  const Model model = ReadModel(Parse(metadata, "metadata of " + options.model),
                                Parse(config, "configuration of " + options.model), options.model);
  const uint64_t bytes = InputBytes(model, options.model);
  const std::vector<uint8_t> data = ReadInput(options.file, bytes, model, options.model);

  const auto check = [&options](const tc::Error& failed) {
    if (failed.IsOk()) return;
    throw Failure(kRefused,
                  "the server at " + options.url + " refused the request: " + failed.Message(),
                  "put right what it names; its log has more");
  };
  tc::InferInput* raw_input = nullptr;
  check(tc::InferInput::Create(&raw_input, model.input, model.shape, model.datatype));
  const std::unique_ptr<tc::InferInput> input(raw_input);
  check(input->AppendRaw(data));
  tc::InferRequestedOutput* raw_output = nullptr;
  check(tc::InferRequestedOutput::Create(&raw_output, model.output, options.classes));
  const std::unique_ptr<tc::InferRequestedOutput> output(raw_output);

  tc::InferOptions request(options.model);
  request.model_version_ = options.version;
  request.request_id_ = "0";
  tc::InferResult* raw_result = nullptr;
  error = client->Infer(&raw_result, request, {input.get()}, {output.get()});
  const std::unique_ptr<tc::InferResult> result(raw_result);
  check(error);
  check(result->RequestStatus());
  std::vector<std::string> classes;
  check(result->StringData(model.output, &classes));

  std::cout << "Image '" << options.file << "':\n";
  for (const std::string& found : classes) std::cout << Line(found) << '\n';
  if (!std::cout.flush()) {
    throw Failure(kStorage, "the answer cannot be written to standard output",
                  "free some space there");
  }
}

int Fail(const std::string& what, const std::string& fix, ExitCode code) {
  std::cerr << "error: " << what << "\nfix: " << fix << std::endl;
  return code;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    // A server is asked without a proxy, as by the Python client.
    setenv("no_proxy", "*", 1);
    const Options options = ParseOptions(argc, argv);
    if (options.help) {
      std::cout << kHelp;
    } else {
      Classify(options);
    }
    return kDone;
  } catch (const Failure& failure) {
    return Fail(failure.what(), failure.fix(), failure.code());
  } catch (const std::exception& error) {
    return Fail(std::string("a defect in image_client: ") + error.what(), "report it", kDefect);
  }
}
