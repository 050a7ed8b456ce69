#!/usr/bin/env bash
# Runs the Kotlin tests, or says in one line why they cannot run here. `PYTHON` is the environment's Python.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-.venv/bin/python}
log=build/kotlin/maven.log
export MAVEN_OPTS=${MAVEN_OPTS:--Xmx1g -XX:TieredStopAtLevel=1 -XX:+UseSerialGC}
maven=(mvn -B -ntp -q -f android_demo/pom.xml)

not_run() {
    echo "Kotlin tests not run: $1"
    exit 0
}

java=$(java -version 2>&1 | sed -n 's/.*version "\([0-9]*\).*/\1/p' | head -1) || true
[[ ${java:-0} -ge 17 ]] || not_run "they need a JDK 17 or newer (found: ${java:-none})"
command -v mvn >/dev/null || not_run "they need Maven (mvn)"

"$python" -m tests.kotlin_vectors build/kotlin
aar=org.pytorch:executorch-android:$(sed -n 's:.*<executorch.version>\(.*\)</executorch.version>.*:\1:p' android_demo/pom.xml):aar
rm -rf build/kotlin/executorch
if mvn -B -ntp -q org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy -Dartifact="$aar" \
    -Dmdep.stripVersion=true -DoutputDirectory="$PWD/build/kotlin/executorch" >/dev/null 2>&1; then
    "$python" -m zipfile -e build/kotlin/executorch/executorch-android.aar build/kotlin/executorch
else
    echo "Kotlin: ExecuTorchEngine not compiled: Maven cannot resolve $aar"
fi

if ! "${maven[@]}" test >"$log" 2>&1; then
    missing=$(grep -oE "Could not (find|transfer) artifact [^ ]+|Non-resolvable [^:]+: [^ ]+" "$log" | head -1) || true
    [[ -z $missing ]] || not_run "Maven says: $missing (all of it: $log)"
    grep -vE '^\s*$|^\s+at ' "$log" | head -60 >&2
    exit 1
fi
count=$(cat android_demo/*/target/surefire-reports/*.txt | awk -F'[:,]' '/^Tests run/ { n += $2 } END { print n }')
echo "Kotlin: $count tests passed"
