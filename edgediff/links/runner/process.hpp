// This process and its machine, as Linux tells.
#pragma once

#include <optional>
#include <string>
#include <vector>

namespace edgediff {

/// A `Key:  123 kB` line of a file of /proc, in MB of 10^6 bytes; nothing where the file has no such line.
std::optional<double> proc_megabytes(const std::string& file, const std::string& key);

/// Highest resident memory so far, resident memory now, and now with shared pages divided among their users.
inline std::optional<double> peak_rss_mb() { return proc_megabytes("/proc/self/status", "VmHWM"); }
inline std::optional<double> rss_mb() { return proc_megabytes("/proc/self/status", "VmRSS"); }
inline std::optional<double> pss_mb() { return proc_megabytes("/proc/self/smaps_rollup", "Pss"); }

/// The cores that this process may run on.
std::vector<int> affinity();

}  // namespace edgediff
