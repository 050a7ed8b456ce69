// edgediff-read: the reader of the runner by itself, for any compiler of C++17.

#include <iostream>
#include <string_view>

#include "batch.hpp"
#include "errors.hpp"

int main(int count, char** words) {
  std::ios::sync_with_stdio(false);
  try {
    if (count == 2 && std::string_view(words[1]) == "--read-manifests") {
      edgediff::read_manifests(std::cin, std::cout);
      return 0;
    }
    throw edgediff::BadInput("give --read-manifests");
  } catch (const std::exception& error) {
    std::cerr << "edgediff-read: " << error.what() << "\n";
    return 2;
  }
}
