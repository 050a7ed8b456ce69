// edgediff-read: the reader of the runner by itself, for any compiler of C++17. Prints `ok` or the code.

#include <iostream>
#include <string_view>

#include "batch.hpp"
#include "errors.hpp"
#include "folder.hpp"
#include "printable.hpp"

int main(int count, char** words) {
  std::ios::sync_with_stdio(false);
  try {
    if (count == 2 && std::string_view(words[1]) == "--read-manifests") {
      edgediff::read_manifests(std::cin, std::cout);
      return 0;
    }
    if (count != 2) throw edgediff::BadInput("give the folder of a bundle, or --read-manifests");
    edgediff::open_bundle(words[1], {});
    std::cout << "ok\n";
    return 0;
  } catch (const edgediff::Refused& error) {
    std::cout << error.code << "\n";
    std::cerr << "edgediff-read: " << edgediff::printable(words[1]) << ": " << error.what() << "\n";
    return 2;
  } catch (const std::exception& error) {
    std::cerr << "edgediff-read: " << error.what() << "\n";
    return 2;
  }
}
