#include "folder.hpp"

#include <algorithm>
#include <fstream>
#include <map>
#include <set>

#include "errors.hpp"
#include "pickle.hpp"
#include "sha256.hpp"
#include "vocabulary.hpp"

namespace edgediff {
namespace {

namespace fs = std::filesystem;

constexpr const char* kManifest = "manifest.json";
constexpr std::uintmax_t kLargestManifest = 16 << 20;

using Sizes = std::map<std::string, std::uintmax_t>;  // by path in the bundle

[[noreturn]] void refuse_kind(const std::string& path, fs::file_type type) {
  const bool link = type == fs::file_type::symlink;
  throw Refused(link ? "link" : "file", "'" + path + "' is " + (link ? "a link" : "not a regular file") +
                                            "; a bundle holds plain files and folders only");
}

std::string read_text(const fs::path& folder) {
  const fs::path file = folder / kManifest;
  if (!fs::is_directory(folder)) {
    throw Refused("not_a_bundle", fs::exists(folder) ? "is no folder; unpack it first" : "does not exist");
  }
  const fs::file_type type = fs::symlink_status(file).type();
  if (type == fs::file_type::not_found) throw Refused("not_a_bundle", "has no manifest.json");
  if (type != fs::file_type::regular) refuse_kind(kManifest, type);
  const std::uintmax_t size = fs::file_size(file);
  if (size > kLargestManifest) throw Refused("size", "manifest.json is larger than 16 MiB");
  std::ifstream stream(file, std::ios::binary);
  std::string text{std::istreambuf_iterator<char>(stream), {}};
  if (!stream) throw BadInput(file.string() + ": cannot be read");
  return text;
}

Sizes scan(const fs::path& folder) {
  Sizes found;
  std::vector<std::string> waiting{""};
  while (!waiting.empty()) {
    const std::string prefix = waiting.back();
    waiting.pop_back();
    std::vector<fs::directory_entry> entries{fs::directory_iterator(folder / prefix), {}};
    std::sort(entries.begin(), entries.end(), [](const auto& one, const auto& other) {
      return one.path().filename().string() < other.path().filename().string();
    });
    for (const fs::directory_entry& entry : entries) {
      const std::string path = prefix + entry.path().filename().string();
      const fs::file_type type = entry.symlink_status().type();
      if (type == fs::file_type::directory) {
        waiting.push_back(path + "/");
      } else if (type == fs::file_type::regular) {
        found[path] = entry.file_size();
      } else {
        refuse_kind(path, type);
      }
    }
  }
  return found;
}

std::set<std::string> paths_of(const Manifest& manifest, const std::string& backend, bool others) {
  std::set<std::string> found;
  for (const auto& [name, graph] : manifest.graphs) {
    for (const auto& [own, artifact] : graph.artifacts) {
      if ((own == backend) == others) continue;
      found.insert(artifact.file);
      found.insert(artifact.chunks.begin(), artifact.chunks.end());
      found.insert(artifact.data.begin(), artifact.data.end());
    }
  }
  return found;
}

/// Files that backends other than this one need, and it does not.
std::set<std::string> others_of(const Manifest& manifest, const std::string& backend) {
  const std::set<std::string> own = paths_of(manifest, backend, false);
  std::set<std::string> found;
  for (const std::string& path : paths_of(manifest, backend, true)) {
    if (own.count(path) != 0) continue;
    for (const FileEntry& entry : manifest.files) {
      if (entry.path == path || entry.path.rfind(path + "/", 0) == 0) found.insert(entry.path);
    }
  }
  return found;
}

void check_sizes(const Manifest& manifest, const Sizes& present, const std::set<std::string>& may_miss) {
  for (const FileEntry& entry : manifest.files) {
    const auto found = present.find(entry.path);
    if (found == present.end()) {
      if (may_miss.count(entry.path) != 0) continue;
      throw Refused("missing_file", "'" + entry.path + "' is missing, or is a folder; the manifest says a file of " +
                                        std::to_string(entry.bytes) + " bytes: copy it again");
    }
    if (found->second != static_cast<std::uintmax_t>(entry.bytes)) {
      throw Refused("size", "'" + entry.path + "' has " + std::to_string(found->second) + " bytes, the manifest says " +
                                std::to_string(entry.bytes) + "; copy it again");
    }
  }
  std::set<std::string> listed{kManifest};
  for (const FileEntry& entry : manifest.files) listed.insert(entry.path);
  for (const auto& [path, size] : present) {
    if (listed.count(path) != 0) continue;
    throw Refused("unlisted", "'" + path + "' is not in the manifest; remove it from the folder");
  }
}

void check_hashes(const Manifest& manifest, const fs::path& folder, const Sizes& present) {
  for (const FileEntry& entry : manifest.files) {
    if (present.count(entry.path) == 0 || sha256(folder / entry.path) == entry.sha256) continue;
    throw Refused("hash", "'" + entry.path +
                              "' has another SHA-256 than the manifest says; it was changed or damaged, "
                              "copy it again");
  }
}

}  // namespace

Manifest open_bundle(const fs::path& folder, const FolderCheck& check) {
  Manifest manifest = read_manifest(read_text(folder));
  const Sizes present = scan(folder);
  for (const auto& [path, size] : present) {
    if (!is_pickle(folder / path, path)) continue;
    throw Refused("pickle", "'" + path + "' is a pickle, which can run code; convert it to safetensors");
  }
  const auto may_miss = check.pushed_for ? others_of(manifest, *check.pushed_for) : std::set<std::string>();
  check_sizes(manifest, present, may_miss);
  if (check.hashes) check_hashes(manifest, folder, present);
  for (const auto& [name, tokenizer] : manifest.tokenizers) read_tokenizer(folder, tokenizer);
  return manifest;
}

}  // namespace edgediff
