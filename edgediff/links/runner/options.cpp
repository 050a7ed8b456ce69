#include "options.hpp"

#include <cerrno>
#include <cstdlib>
#include <functional>
#include <iostream>
#include <map>
#include <string>

#include "engine.hpp"
#include "reader/errors.hpp"

#ifndef EDGEDIFF_EXECUTORCH
#error "compile with -DEDGEDIFF_EXECUTORCH=\"<version of the libraries>\""
#endif

namespace edgediff {
namespace {

constexpr const char* kHelp =
    R"(edgediff-runner BUNDLE [options]: makes pictures from a bundle with ExecuTorch and prints JSON lines

  --runs N            pictures to time (default 5)
  --warmup N          pictures before them, not timed (default 1)
  --sustained SECONDS pictures until so much time has passed, in place of --runs
  --threads N         threads (default: ExecuTorch's choice)
  --backend NAME      executorch, the only one there is
  --program NAME      one of the bundle's programs (default: its own default)
  --strength X        the program that starts from a picture with this strength
  --guidance X        the guidance scale, within the program's range
  --seed N            of the first picture, 0 to 2^64 - 1 (default 0); the next one has the next
  --inputs FILE       .safetensors with what the program takes: input_ids.ENCODER [1, length], or [2, length] with the
                      negative prompt's first (default: the golden file's ids), class_label [1] (default: class 0),
                      picture [height, width, 3] and mask [height, width] of 0 to 255, noise (the standard normal draw
                      of x_0) or latent (x_0 itself)
  --no-verify         leave out the SHA-256 of the bundle's files
  --pushed            files that only other backends need may be missing, as edgediff profile leaves them out
  --check             run every graph on the bundle's golden inputs instead, and compare
  --floor DB          with --check: exit status 1 when an output is below
  --save FILE         also write .safetensors: the last latent, picture (or sound) and preview, or with --check every
                      output
  --etdump FOLDER     trace every operator, which makes the times too long, and write an ETDump of each graph there
  --read-manifests    in place of all that: read frames from standard input, a decimal count of bytes, a newline and
                      so many bytes of a manifest, and answer each with a line, ok or the error's code
  --version

exit status: 0 done, 1 a graph failed or missed the floor, 2 bad input
)";

double number(const std::string& option, const std::string& word, double least, double most) {
  char* end = nullptr;
  const double value = std::strtod(word.c_str(), &end);
  if (word.empty() || *end != '\0' || !(value >= least && value <= most)) {
    throw BadInput(option + " " + word + ": it must be a number from " + std::to_string(static_cast<long>(least)) +
                   " to " + std::to_string(static_cast<long>(most)));
  }
  return value;
}

int whole(const std::string& option, const std::string& word, int least, int most) {
  const double value = number(option, word, least, most);
  if (value != static_cast<int>(value)) throw BadInput(option + " " + word + ": it must be a whole number");
  return static_cast<int>(value);
}

std::uint64_t seed(const std::string& word) {
  const bool digits = !word.empty() && word.find_first_not_of("0123456789") == std::string::npos;
  errno = 0;
  const std::uint64_t value = digits ? std::strtoull(word.c_str(), nullptr, 10) : 0;
  if (!digits || errno != 0) throw BadInput("--seed " + word + ": it must be a whole number from 0 to 2^64 - 1");
  return value;
}

void check_backend(const std::string& word) {
  if (word != kBackend) throw BadInput("unknown backend '" + word + "' (allowed: " + kBackend + ")");
}

}  // namespace

Options read_options(int count, char** words) {
  Options options;
  using Setter = std::function<void(const std::string&)>;
  const std::map<std::string, Setter> valued = {
      {"--runs", [&](const auto& word) { options.runs = whole("--runs", word, 1, 10'000); }},
      {"--warmup", [&](const auto& word) { options.warmup = whole("--warmup", word, 0, 10'000); }},
      {"--threads", [&](const auto& word) { options.threads = whole("--threads", word, 1, 1024); }},
      {"--sustained", [&](const auto& word) { options.sustained = number("--sustained", word, 1, 86'400); }},
      {"--program", [&](const auto& word) { options.program = word; }},
      {"--strength", [&](const auto& word) { options.strength = number("--strength", word, 0, 1); }},
      {"--guidance", [&](const auto& word) { options.guidance = number("--guidance", word, 0, 1000); }},
      {"--seed", [&](const auto& word) { options.seed = seed(word); }},
      {"--floor", [&](const auto& word) { options.floor = number("--floor", word, 0, 200); }},
      {"--backend", check_backend},
      {"--inputs", [&](const auto& word) { options.inputs = word; }},
      {"--etdump", [&](const auto& word) { options.etdump = word; }},
      {"--save", [&](const auto& word) { options.save = word; }},
  };
  const std::map<std::string, std::pair<bool*, bool>> flags = {{"--check", {&options.check, true}},
                                                               {"--read-manifests", {&options.read_manifests, true}},
                                                               {"--no-verify", {&options.verify, false}},
                                                               {"--pushed", {&options.pushed, true}}};
  for (int index = 1; index < count; ++index) {
    const std::string word = words[index];
    if (word == "--help") {
      std::cout << kHelp;
      std::exit(0);
    } else if (word == "--version") {
      std::cout << "edgediff-runner, executorch " EDGEDIFF_EXECUTORCH "\n";
      std::exit(0);
    } else if (const auto flag = flags.find(word); flag != flags.end()) {
      *flag->second.first = flag->second.second;
    } else if (const auto found = valued.find(word); found != valued.end()) {
      if (++index == count) throw BadInput(word + " needs a value; see --help");
      found->second(words[index]);
    } else if (word.rfind("--", 0) == 0 || !options.bundle.empty()) {
      throw BadInput("unknown argument '" + word + "'; see --help");
    } else {
      options.bundle = word;
    }
  }
  if (options.program && options.strength) throw BadInput("give --program or --strength, not both");
  if (options.bundle.empty() && !options.read_manifests) throw BadInput("give the folder of a bundle; see --help");
  return options;
}

}  // namespace edgediff
