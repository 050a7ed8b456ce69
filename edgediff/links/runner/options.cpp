#include "options.hpp"

#include <cstdlib>
#include <functional>
#include <iostream>
#include <map>
#include <string>

#include "engine.hpp"
#include "errors.hpp"

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
  --inputs FILE       .safetensors with latent, noise, input_ids, class_labels; without it, latent and noise are drawn
                      from a normal distribution and the ids are those of the bundle's golden file
  --check             run every graph on the bundle's golden inputs instead, and compare
  --floor DB          with --check: exit status 1 when an output is below
  --save FILE         also write .safetensors: the last latent and picture, or with --check every output
  --etdump FOLDER     trace every operator, which makes the times too long, and write an ETDump of each graph there
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
      {"--floor", [&](const auto& word) { options.floor = number("--floor", word, 0, 200); }},
      {"--backend", check_backend},
      {"--inputs", [&](const auto& word) { options.inputs = word; }},
      {"--etdump", [&](const auto& word) { options.etdump = word; }},
      {"--save", [&](const auto& word) { options.save = word; }},
  };
  for (int index = 1; index < count; ++index) {
    const std::string word = words[index];
    if (word == "--help") {
      std::cout << kHelp;
      std::exit(0);
    } else if (word == "--version") {
      std::cout << "edgediff-runner, executorch " EDGEDIFF_EXECUTORCH "\n";
      std::exit(0);
    } else if (word == "--check") {
      options.check = true;
    } else if (const auto found = valued.find(word); found != valued.end()) {
      if (++index == count) throw BadInput(word + " needs a value; see --help");
      found->second(words[index]);
    } else if (word.rfind("--", 0) == 0 || !options.bundle.empty()) {
      throw BadInput("unknown argument '" + word + "'; see --help");
    } else {
      options.bundle = word;
    }
  }
  if (options.bundle.empty()) throw BadInput("give the folder of a bundle; see --help");
  return options;
}

}  // namespace edgediff
