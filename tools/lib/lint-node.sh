# shellcheck shell=bash disable=SC2154
# What Node's own linters say of the series, as a pull request would hear it. Sourced by tools/check, after patches.sh
# and packages.sh. Each runs over a tree that the exported commits were applied to, never over the patches themselves.

lint_requirements=$repo/tools/lib/python/requirements.txt

# git_in_tree ARGUMENT...
git_in_tree() { plain_git -C "$lint_tree" "$@"; }

# lint_tree_ready: Node's source as far as the linters look at it, in lint_tree, with a commit for each of the series on
# top of the tag `base`. Only what the series changes is under version control there.
lint_tree=$cache/check-$repo_key/node
# Made once in a run, of which each check has a shell of its own.
lint_run=$$-$(date +%s%N)
lint_tree_ready() {
  local tree=$lint_tree file
  [[ ! -e $tree.made || $(<"$tree.made") != "$lint_run" ]] || return 0
  rm -rf "$tree" "$tree.mails" && mkdir -p "$tree/tools" "$tree/test" && cd "$node_source" &&
    cp -a .clang-format .cpplint pyproject.toml ./*.md ./*.py doc lib src "$tree/" &&
    cp -a tools/*.py tools/doc tools/lint-md "$tree/tools/" && cp -a test/common test/doctool "$tree/test/" &&
    ln -s "$node_source/test/fixtures" "$tree/test/fixtures" && cd "$repo" || return
  # A release brings its documentation along as it was generated.
  mkdir -p "$tree/out/doc" && mv "$tree/doc/api" "$tree/out/doc/" && mkdir "$tree/doc/api" &&
    cp -a "$tree"/out/doc/api/*.md "$tree/doc/api/" && cp "$tree/doc/node-config-schema.json" "$tree/out/doc/" || return
  tools/patches export "$tree.mails" && git_in_tree init -q . || return
  while IFS= read -r file; do
    [[ -e $node_source/$file ]] || continue
    install -D -m 644 "$node_source/$file" "$tree/$file" && git_in_tree add -f "$file" || return
  done < <(touched)
  # Whoever sends the series signs it off, which only a person can do. Here it is done for the linter's sake.
  (
    git_in_tree commit -q -m base && git_in_tree tag base &&
      git_in_tree am -q --signoff --whitespace=nowarn "$tree.mails"/*.patch
  ) && echo "$lint_run" >"$tree.made"
}

# changed PATHSPEC...: the files of the series, in Node's tree.
changed() { git_in_tree diff --name-only --diff-filter=AM base -- "$@"; }

# in_tree COMMAND...: in the sandbox.
in_tree() {
  local rc=0
  cd "$lint_tree" || return
  sandbox_run env GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_NOSYSTEM=1 NO_COLOR=1 "$@" || rc=$?
  cd "$repo" || return
  return "$rc"
}

# The rules about who has reviewed a pull request, and where, are for those that land it.
commit_messages() {
  local list
  lint_tree_ready && npm_ready commit-lint "$repo/tools/lib/commit-lint" || return
  mapfile -t list < <(git_in_tree rev-list --reverse base..HEAD)
  ((${#list[@]})) &&
    in_tree node "$npm_dir/node_modules/core-validate-commit/bin/cmd.js" --no-validate-metadata "${list[@]}"
}

# What is in deps is not held to it.
markdown() {
  local list
  lint_tree_ready && npm_ready lint-md "$node_source/tools/lint-md" || return
  ln -sfn "$npm_dir/node_modules" "$lint_tree/tools/lint-md/node_modules" || return
  mapfile -t list < <(changed '*.md' ':!deps')
  ((${#list[@]})) && in_tree node "$repo/tools/lib/lint-markdown.mjs" base "${list[@]}"
}

# documentation: HTML and JSON of what was changed, which fails for types that are unknown. The rest is as it came.
documentation() {
  local list file bad=0
  lint_tree_ready && npm_ready doc "$node_source/tools/doc" || return
  mkdir -p "$lint_tree/deps/acorn" "$lint_tree/tmp" &&
    ln -sfn "$npm_dir/node_modules" "$lint_tree/tools/doc/node_modules" &&
    ln -sfn /usr/share/nodejs/acorn "$lint_tree/deps/acorn/acorn" || return
  mapfile -t list < <(changed 'doc/api/*.md')
  ((${#list[@]})) || return
  for file in "${list[@]}"; do
    cp "$lint_tree/$file" "$lint_tree/out/doc/api/" && in_tree node tools/doc/generate.mjs \
      --node-version="v${node_version%%+*}" --output-directory=out/doc/api "$file" || bad=1
  done
  in_tree node "$repo/tools/lib/lint-links.mjs" out/doc/api "${list[@]}" || bad=1
  for file in "$lint_tree"/test/doctool/test-*; do
    # Some say a lot, which only matters when they fail.
    in_tree env NODE_TEST_DIR="$lint_tree/tmp" NODE_TEST_NO_INTERNET=1 node "$file" >"$lint_tree/tmp/log" 2>&1 ||
      { bad=1; echo "${file##*/}:"; cat "$lint_tree/tmp/log"; }
  done
  return "$bad"
}

error_codes() {
  lint_tree_ready && in_tree node "$repo/tools/lib/lint-errors.mjs" "$lint_tree"
}

# changed_javascript: the changed lines; files that are new are linted as a whole elsewhere.
changed_javascript() {
  local list
  lint_tree_ready && npm_ready eslint "$repo/tools/lib/eslint" &&
    cp "$repo"/tools/lib/eslint/*.mjs "$repo/tools/lib/changed-lines.mjs" "$lint_tree/" &&
    ln -sfn "$npm_dir/node_modules" "$lint_tree/node_modules" || return
  mapfile -t list < <(git_in_tree diff --name-only --diff-filter=M base -- 'lib/*.js' 'test/*.js' 'benchmark/*.js')
  ((${#list[@]} == 0)) || in_tree node changed.mjs base "${list[@]}"
}

changed_cpp() {
  lint_tree_ready && python_ready "$lint_requirements" &&
    in_tree "$python_dir/bin/git-clang-format" --binary="$python_dir/bin/clang-format" --style=file --extensions=h,cc \
      --diff base -- src test
}

imports() {
  local list
  lint_tree_ready || return
  mapfile -t list < <(changed 'src/*.h' 'src/*.cc')
  ((${#list[@]} == 0)) || in_tree python3 tools/checkimports.py "${list[@]}"
}

# What Node runs is a cpplint 2 with changes of its own, which its source package does not bring along. This one takes
# Node's settings, and finds nothing in what Node lints of its src but the order of includes, 357 times: there, those
# of the system come last.
cpplint() {
  local list
  lint_tree_ready && python_ready "$lint_requirements" || return
  mapfile -t list < <(changed 'src/*.h' 'src/*.cc')
  ((${#list[@]} == 0)) || in_tree "$python_dir/bin/cpplint" --quiet --config=.cpplint --filter=-build/include_order \
    --repository="$lint_tree" "${list[@]}"
}

# Named one by one, since Node's settings leave out deps.
python() {
  local list
  lint_tree_ready && python_ready "$lint_requirements" || return
  mapfile -t list < <(changed '*.py' ':!deps/*/vendor/*')
  ((${#list[@]} == 0)) || in_tree "$python_dir/bin/ruff" check --no-cache "${list[@]}"
}
