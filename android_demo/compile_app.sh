#!/usr/bin/env bash
# Compiles the app's screens without an Android SDK or Gradle: Kotlin's compiler with Compose's plugin against the
# published classes of androidx, android-all, and the modules that `make test` has built. Needs Google's Maven
# repository, and ExecuTorch's classes (which test.sh fetches where it can). Writes build/kotlin/app; no APK.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
out=../build/kotlin/app
mkdir -p "$out"

get() { mvn -B -ntp -q -f compile_app.pom.xml "$@"; }

get org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies -DoutputDirectory="$PWD/$out/lib"
for aar in "$out"/lib/*.aar; do
    unzip -qo "$aar" classes.jar -d "$out/tmp" && mv "$out/tmp/classes.jar" "${aar%.aar}.classes.jar"
    rm "$aar"
done
jars=$(printf '%s:' "$out"/lib/*.jar)
modules=edgediff/target/classes:engines/target/classes:app/target/classes
executorch=../build/kotlin/executorch/classes.jar
[[ -f $executorch ]] || { echo "ExecuTorch's classes are not here: run test.sh where Maven can resolve them" >&2; exit 1; }
compiler=$(printf '%s:' "$out"/lib/{kotlin-{compiler-embeddable,stdlib,script,reflect,daemon},kotlinx,annotations}*.jar)
java -Xmx1g -cp "$compiler" org.jetbrains.kotlin.cli.jvm.K2JVMCompiler -no-stdlib -no-reflect -jvm-target 17 -Werror \
    -Xplugin="$(ls "$out"/lib/kotlin-compose-compiler-plugin-embeddable-*.jar)" \
    -cp "$jars$modules:$executorch" -d "$out/classes" app/src/android/kotlin
echo "compiled $(find "$out/classes" -name '*.class' | wc -l) classes of the app's screens"
