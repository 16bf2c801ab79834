# shellcheck shell=bash disable=SC2034,SC2154
# The series in node-patches and a Node tree: which files belong to it, and how they get there and back. Sourced after
# vendor.sh.
#
# Node's files are changed by patches. Files that Node does not have are kept whole: in node-patches/ where they go in
# Node's tree, and the Rust core and the tests at their place in this repository. The crates that the core needs are not
# kept, see vendor.sh. node-patches/main is about another branch of Node, and goes nowhere.
#
# The series adds features one by one. Files that Node does not have are kept as the last commit leaves them, and
# node-patches/slices has, for each of the later commits, a patch of what it changes in files that an earlier commit has
# brought: taken back from the last commit to the first, those patches give the files as they are after each commit.

series_dir=$repo/node-patches
# In a tree that the series was applied to: what the changed files were before, and checksums of what we put there.
record_dir=deps/tls_splice/.applied

# Neither the user's git configuration, nor his environment, nor a surrounding repository may change what git does here.
plain_git() {
  env -i PATH="$PATH" HOME=/nonexistent LC_ALL=C GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_NOSYSTEM=1 GIT_ATTR_NOSYSTEM=1 \
    GIT_CEILING_DIRECTORIES="$cache" git -c user.name=tls-splice -c user.email=tls-splice@example.org "$@"
}

# Each line of the series is a commit: its patch file, then the new files and folders that come with it.
series_patches() {
  [[ ! -e $series_dir/series ]] || sed -n 's/^\([^#[:space:]]*\.patch\).*/\1/p' "$series_dir/series"
}

# touched_by PATCH: the files of Node's that it changes.
touched_by() {
  sed -n 's,^+++ b/\([^[:space:]]*\).*,\1,p' "$series_dir/$1"
}

touched() {
  local patch
  for patch in $(series_patches); do touched_by "$patch"; done | LC_ALL=C sort -u
}

# listed FOLDER FILE...: the files under it, without what git ignores.
listed() {
  if git -C "$repo" rev-parse --git-dir >/dev/null 2>&1; then
    git -C "$repo" ls-files -co --exclude-standard -- "$@"
  else
    (cd "$repo" && find "$@" -type f 2>/dev/null) || :
  fi | LC_ALL=C sort -u | while IFS= read -r file; do [[ ! -f $repo/$file ]] || printf '%s\n' "$file"; done
}

# new_files: a line for each but vendored crates, "path in Node's tree, tab, where it is".
new_files() {
  {
    listed node-patches | sed -n '/^node-patches\/[^/]*$/d; /^node-patches\/main\//d; /^node-patches\/slices\//d; s,^node-patches/\(.*\)$,\1\t&,p'
    listed LICENSE rust/src include | sed 's,.*,deps/tls_splice/&\t&,'
    listed test/parallel test/common | sed 's,.*,&\t&,'
  } | sed "s,\t,&$repo/,"
  printf 'deps/tls_splice/%s\t%s\n' Cargo.toml "$vendor_dir/Cargo.toml" Cargo.lock "$vendor_dir/Cargo.lock"
}

# The folder of the crates in Node's tree. They are put there, taken away and compared as a whole.
vendored=deps/tls_splice/vendor

# The sandbox has patch, a host may not.
run_patch() {
  if command -v patch >/dev/null; then
    patch "$@"
  else
    sandbox_run patch "$@"
  fi
}

# scratch: prints a new folder, which the sandbox sees as well.
scratch() {
  mkdir -p "$cache/tmp"
  find "$cache/tmp" -mindepth 1 -maxdepth 1 -mtime +1 -exec rm -rf {} +
  mktemp -d "$cache/tmp/XXXXXX"
}

patch_stage() {
  local stage=$1 fuzz=$2 patch
  shift 2
  for patch; do
    # One that so far only has a message, or only brings new files.
    grep -q '^diff --git ' "$series_dir/$patch" || continue
    run_patch -d "$stage" -p1 -s -f --no-backup-if-mismatch -F "$fuzz" -r "$stage.rejected" -i "$series_dir/$patch" >"$stage.log" || {
      cat "$stage.log" >&2
      [[ ! -e $stage.rejected ]] || { say "this hunk does not fit:"; cat "$stage.rejected" >&2; }
      say "error: $patch does not apply to this Node tree"
      return 1
    }
  done
}

# original FILE TREE: prints where its content from before the series is, or nothing when Node has no such file.
original() {
  local file=$1 tree=$2 record=$2/$record_dir
  if [[ -e $record/sums && -e $record/original/$file ]] && known "$file" "$tree"; then
    printf '%s\n' "$record/original/$file"
  elif [[ -e $tree/$file ]]; then
    printf '%s\n' "$tree/$file"
  fi
}

# known FILE TREE: whether it has the content that we put there (and nobody has edited it since).
known() {
  local sum
  sum=$(sha256sum <"$2/$1") && grep -qxF "${sum%% *}  $1" "$2/$record_dir/sums" 2>/dev/null
}

# copy_changed FROM TO: keeps the time of a file that has that content already, or ninja would compile it again, and the
# mode of one that has not.
copy_changed() {
  cmp -s "$1" "$2" || {
    mkdir -p "$(dirname "$2")"
    cp "$1" "$2.new.$$"
    [[ ! -e $2 ]] || chmod --reference="$2" "$2.new.$$"
    mv "$2.new.$$" "$2"
  }
}

is_node_tree() { [[ -e $1/src/node_version.h && -e $1/node.gyp ]] || die "$1 is not a Node source tree"; }

# patches_apply TREE [SOURCE]: all or nothing, and again at any time: after a change of the series only the difference is made.
# Everything is worked out in a folder aside first. The record is written before the files, so that a run that was
# interrupted half-way is finished by the next one. SOURCE is what TREE is a copy of, for patches_save.
patches_apply() {
  local tree=$1 record=$1/$record_dir work file from patches
  is_node_tree "$tree"
  vendor_ready
  work=$(scratch)
  # shellcheck disable=SC2064
  trap "rm -rf '$work'" EXIT
  mkdir "$work/original" "$work/stage"

  while IFS= read -r file; do
    from=$(original "$file" "$tree")
    [[ $from ]] || die "$tree has no $file, which the series changes"
    install -D -m 644 "$from" "$work/original/$file"
    install -D -m 644 "$from" "$work/stage/$file"
  done < <(touched)
  mapfile -t patches < <(series_patches)
  if ! patch_stage "$work/stage" 2 "${patches[@]}"; then
    for file in $(touched); do
      if [[ -e $record/original/$file ]] && ! known "$file" "$tree"; then
        say "note: $file was edited after the series was applied: tools/patches save $tree keeps the edit"
      fi
    done
    die "nothing was changed in $tree"
  fi
  while IFS=$'\t' read -r file from; do
    if [[ -e $tree/$file ]] && ! cmp -s "$from" "$tree/$file" && ! known "$file" "$tree"; then
      die "$tree/$file differs from ${from#"$repo/"} and was not put there by this tool: nothing was changed (tools/patches save $tree keeps an edit)"
    fi
    install -D -m 644 "$from" "$work/stage/$file"
  done < <(new_files)

  (cd "$work/stage" && find . -type f -printf '%P\n' | LC_ALL=C sort | xargs -r -d '\n' sha256sum) >"$work/sums"
  (cd "$work/original" && find . -type f -printf '%P\n') | while IFS= read -r file; do
    copy_changed "$work/original/$file" "$record/original/$file"
  done
  mkdir -p "$record"
  echo '*' | put "$record/.gitignore"
  [[ ! ${2-} ]] || printf '%s\n' "$2" | put "$record/source"
  # Until all is in place the old content is as much ours as the new.
  cmp -s "$record/sums" "$work/sums" || { cat "$record/sums" 2>/dev/null || :; cat "$work/sums"; } | put "$record/sums"

  # What an earlier series put here and this one does not.
  cut -c67- "$record/sums" | LC_ALL=C sort -u | while IFS= read -r file; do
    if [[ -e $work/stage/$file || ! -e $tree/$file ]] || ! known "$file" "$tree"; then continue; fi
    if [[ -e $record/original/$file ]]; then
      copy_changed "$record/original/$file" "$tree/$file"
      rm "$record/original/$file"
    else
      rm "$tree/$file"
    fi
  done
  (cd "$work/stage" && find . -type f -printf '%P\n') | while IFS= read -r file; do
    copy_changed "$work/stage/$file" "$tree/$file"
  done
  if [[ ! -e $tree/$vendored || $(cat "$record/vendored" 2>/dev/null) != "$vendor_key" ]]; then
    rm -rf "${tree:?}/$vendored" "$tree/$vendored.new"
    cp -r "$vendor_dir/vendor" "$tree/$vendored.new"
    mv "$tree/$vendored.new" "$tree/$vendored"
    echo "$vendor_key" | put "$record/vendored"
  fi
  put "$record/sums" <"$work/sums"
  rm -rf "$work"
  trap - EXIT
}

# plain_diff A B: what changed between two folders, in the one form that the series has: no object names, which depend
# on nothing that a reader could check, and no settings of the user's.
plain_diff() {
  local rc=0
  (cd "$1/.." && plain_git diff --no-index --no-prefix --no-color --no-renames --text --diff-algorithm=myers -U3 \
    "$(basename "$1")" "$(basename "$2")") >"$1.diff" || rc=$?
  # 1: they differ.
  ((rc <= 1)) || die "git diff failed ($rc)"
  sed '/^index [0-9a-f]*\.\.[0-9a-f]*/d' "$1.diff"
  rm "$1.diff"
}

# patch_header PATCH: who, what and why, up to the diff.
patch_header() { sed '/^diff --git /,$d' "$series_dir/$1"; }

# series_new PATCH: the folders and files that come with it.
series_new() {
  sed -n "s/^$1[[:space:]]*//p" "$series_dir/series" | tr -s '[:space:]' '\n' | sed '/^$/d'
}

# new_files_of PATCH: the lines of new_files that belong to its commit: those below one of its folders, unless another
# commit names them more closely.
new_files_of() {
  local patch path
  new_files | awk -F'\t' -v wanted="$1" -v owners="$(for patch in $(series_patches); do
    for path in $(series_new "$patch"); do printf '%s %s ' "$path" "$patch"; done
  done)" '
    BEGIN { n = split(owners, list, " ") }
    {
      owner = ""
      longest = 0
      for (i = 1; i < n; i += 2)
        if (($1 == list[i] || index($1, list[i] "/") == 1) && length(list[i]) > longest) {
          longest = length(list[i])
          owner = list[i + 1]
        }
      if (owner == wanted) print
    }'
}

# slices: the commits that change files of earlier ones, the last one first.
slices() {
  local patch
  for patch in $(series_patches | tac); do [[ ! -e $series_dir/slices/$patch ]] || printf '%s\n' "$patch"; done
}

# slices_stage DIR FUZZ: makes DIR/final, the files that Node does not have as the last commit leaves them, and DIR/PATCH
# for each slice: the files as they are before its commit.
slices_stage() {
  local dir=$1 fuzz=$2 after=$1/final file from patch
  mkdir "$after"
  while IFS=$'\t' read -r file from; do
    [[ $from != "$repo"/* ]] || install -D -m 644 "$from" "$after/$file"
  done < <(new_files)
  for patch in $(slices); do
    cp -a "$after" "$dir/$patch"
    while IFS=$'\t' read -r file from; do rm "$dir/$patch/$file"; done < <(new_files_of "$patch")
    run_patch -d "$dir/$patch" -p1 -R -s -f --no-backup-if-mismatch -F "$fuzz" -r "$dir/rejected" \
      -i "$series_dir/slices/$patch" >"$dir/log" || {
      cat "$dir/log" >&2
      [[ ! -e $dir/rejected ]] || { say "this hunk does not fit:"; cat "$dir/rejected" >&2; }
      say "error: what node-patches/slices/$patch does cannot be taken back from the files as they are"
      return 1
    }
    after=$dir/$patch
  done
}

# slice_after PATCH DIR: where the files are as they are after its commit.
slice_after() {
  local next
  next=$(slices | grep -B1 -xF "$1" | sed -n 1p)
  [[ $next != "$1" ]] || next=final
  printf '%s\n' "$2/$next"
}

# slice_files PATCH DIR BEFORE AFTER: copies what the slice changes to DIR/a and DIR/b.
slice_files() {
  local patch=$1 dir=$2 before=$3 after=$4 file
  while IFS= read -r file; do
    install -D -m 644 "$before/$file" "$dir/a/$file"
    install -D -m 644 "$after/$file" "$dir/b/$file"
  done < <(touched_by "slices/$patch")
}

# patches_export DIR: mails for git am. The same input gives the same bytes.
patches_export() {
  local out=$1 patches patch number=0 name work stage file from
  vendor_ready
  [[ ! -e $out || -d $out ]] || die "$out is not a folder"
  ! compgen -G "$out/*" >/dev/null || die "$out is not empty"
  work=$(scratch)
  mkdir "$work/mails" "$work/stage"
  slices_stage "$work/stage" 0
  stage=$work/stage/$({ echo final; slices; } | tail -n 1)
  mapfile -t patches < <(series_patches)
  for patch in "${patches[@]}"; do
    number=$((number + 1))
    printf -v name '%04d-%s' "$number" "$patch"
    rm -rf "$work/a" "$work/b"
    mkdir "$work/a" "$work/b"
    if [[ -e $series_dir/slices/$patch ]]; then
      stage=$(slice_after "$patch" "$work/stage")
      slice_files "$patch" "$work" "$work/stage/$patch" "$stage"
    fi
    while IFS=$'\t' read -r file from; do
      [[ ! -e $stage/$file ]] || from=$stage/$file
      install -D -m 644 "$from" "$work/b/$file"
    done < <(new_files_of "$patch")
    # The crates come with the list of them.
    [[ ! -e $work/b/${vendored%/*}/Cargo.lock ]] || cp -r "$vendor_dir/vendor" "$work/b/$vendored"
    {
      # git am takes the author and the date from here.
      echo 'From 0000000000000000000000000000000000000000 Mon Sep 17 00:00:00 2001'
      patch_header "$patch" | sed "s/^Subject: \[PATCH\]/Date: Thu, 1 Jan 2026 00:00:00 +0000\nSubject: [PATCH $number\/${#patches[@]}]/"
      echo ---
      sed -n '/^diff --git /,$p' "$series_dir/$patch"
      plain_diff "$work/a" "$work/b"
      echo '-- '
      echo tls-splice
    } >"$work/mails/$name"
  done
  # All or nothing.
  mkdir -p "$out"
  cp "$work/mails"/* "$out/"
  rm -rf "$work"
}

# patches_save TREE [PATCH FILE...]: the way back, for somebody who edited files in a tree that the series was applied
# to. An edit goes to the last patch that touches the file; FILEs that no patch touches yet are added to PATCH. A new
# file of the series that was edited here and not there stays as it is.
patches_save() {
  local tree=$1 add_to=${2-} record=$1/$record_dir work file from patch patches
  shift $(($# < 2 ? 1 : 2))
  [[ -e $record/sums ]] || die "the series was not applied to $tree"
  vendor_ready
  [[ ! $add_to || -e $series_dir/$add_to ]] || die "there is no $add_to in node-patches"
  while IFS=$'\t' read -r file from; do
    if [[ -e $tree/$file ]] && ! known "$file" "$tree" && ! cmp -s "$from" "$tree/$file"; then
      grep -qxF "$(sha256sum <"$from" | cut -c1-64)  $file" "$record/sums" ||
        die "${from#"$repo/"} and $tree/$file were edited in both places: nothing was saved"
    fi
  done < <(new_files)
  work=$(scratch)
  for file; do
    [[ -e $record/original/$file ]] || pristine "$file" "$tree" >"$work/pristine" || die "cannot tell what $file was before the edit"
    [[ -e $record/original/$file ]] || install -D -m 644 "$work/pristine" "$record/original/$file"
  done
  mapfile -t patches < <(series_patches)
  mkdir "$work/now"
  cp -a "$record/original/." "$work/now"
  for patch in "${patches[@]}"; do
    rm -rf "$work/a" "$work/b"
    mkdir "$work/a" "$work/b"
    for file in $(touched_by "$patch") $([[ $patch != "$add_to" ]] || printf '%s\n' "$@"); do
      [[ -e $work/now/$file ]] || die "there is no record of what $file was: apply the series to $tree first"
      install -D -m 644 "$work/now/$file" "$work/a/$file"
    done
    cp -a "$work/a/." "$work/b"
    patch_stage "$work/b" 2 "$patch" || die "$patch does not apply to what $tree was made from"
    for file in $(cd "$work/b" && find . -type f -printf '%P\n'); do
      [[ $(last_patch "$file" "$add_to" "$@") != "$patch" ]] || cp "$tree/$file" "$work/b/$file"
      install -D -m 644 "$work/b/$file" "$work/now/$file"
    done
    plain_diff "$work/a" "$work/b" >"$work/diff"
    { patch_header "$patch"; cat "$work/diff"; } | report "node-patches/$patch"
  done
  while IFS=$'\t' read -r file from; do
    # What is made, not kept, is not edited either.
    [[ ! -e $tree/$file || $from != "$repo"/* ]] || known "$file" "$tree" || report "${from#"$repo/"}" <"$tree/$file"
  done < <(new_files)
  slices_save "$work"
  (cd "$tree" && { cut -c67- "$record_dir/sums"; touched; } | LC_ALL=C sort -u | xargs -r -d '\n' sha256sum 2>/dev/null) | put "$record/sums"
  rm -rf "$work"
}

# slices_save WORK: writes the slices anew, whose lines may have moved.
slices_save() {
  local work=$1 patch
  mkdir "$work/stage"
  slices_stage "$work/stage" 2
  for patch in $(slices); do
    slice_diff "$patch" "$work" | report "node-patches/slices/$patch"
  done
}

# slice_diff PATCH WORK: what WORK/stage says that the slice changes.
slice_diff() {
  rm -rf "$2/a" "$2/b"
  slice_files "$1" "$2" "$2/stage/$1" "$(slice_after "$1" "$2/stage")"
  plain_diff "$2/a" "$2/b"
}

report() {
  local tmp
  tmp=$(mktemp)
  cat >"$tmp"
  cmp -s "$tmp" "$repo/$1" || { cat "$tmp" >"$repo/$1"; say "saved $1"; }
  rm -f "$tmp"
}

# last_patch FILE [PATCH FILE...]: the last patch of the series that changes it.
last_patch() {
  local file=$1 add_to=${2-} patch last=
  shift $(($# < 2 ? 1 : 2))
  for patch in $(series_patches); do
    if touched_by "$patch" | grep -qxF "$file"; then
      last=$patch
    elif [[ $patch == "$add_to" ]] && printf '%s\n' "$@" | grep -qxF "$file"; then
      last=$patch
    fi
  done
  printf '%s\n' "$last"
}

# pristine FILE TREE: as it was before any edit.
pristine() {
  if [[ -e $2/$record_dir/source && -e $(<"$2/$record_dir/source")/$1 ]]; then
    cat "$(<"$2/$record_dir/source")/$1"
  else
    git -C "$2" show "HEAD:./$1"
  fi
}

# patches_check [TREE]: what must hold before the series is published: it is consistent, and it applies without fuzz to
# TREE, a Node tree, by default the one that tools/build starts from. Every hunk that has no place there is named.
patches_check() {
  local tree=${1-} work
  if [[ ! $tree ]]; then
    tree=$(cat "$repo/out/tree/$record_dir/source" 2>/dev/null) || die 'give the folder of a Node tree, or run tools/build first'
  fi
  is_node_tree "$tree"
  vendor_ready
  work=$(scratch)
  check_series
  check_slices "$work"
  check_tree "$tree" "$work"
  [[ ${1-} && $1 != "${node_source-}" ]] || check_written "$work"
  check_export "$work"
  rm -rf "$work"
  say "the series applies to Node $(tree_version "$tree") in $tree, without fuzz, and to git am"
  say "it changes $(lines_changed src '.*\.(cc|h)') lines of Node's C++, $(lines_changed lib '.*\.js') of its JavaScript"
}

# lines_changed FOLDER PATTERN: how many lines are added to and taken from such files that Node has.
lines_changed() {
  cat "$series_dir"/*.patch | awk -v pattern="^(---|\\+\\+\\+) [ab]/$1/$2" '
    /^(---|\+\+\+) [ab]\// { wanted = $0 ~ pattern; next }
    wanted && /^[-+]/ { n++ }
    END { print n + 0 }'
}

# tree_version TREE
tree_version() {
  sed -n 's/^#define NODE_M[AI][JN]OR_VERSION //p; s/^#define NODE_PATCH_VERSION //p' "$1/src/node_version.h" | paste -sd.
}

# Mistakes that are there without any tree.
check_series() {
  local file from owner owners patch bad=0
  complain() { say "error: $*"; bad=1; }
  for file in "$series_dir"/*.patch; do
    [[ $(series_patches | grep -cxF "$(basename "$file")") == 1 ]] ||
      complain "$(basename "$file") is not exactly once in node-patches/series"
  done
  owners=$(for patch in $(series_patches); do new_files_of "$patch"; done | cut -f1)
  while IFS=$'\t' read -r file from; do
    owner=$(grep -cxF "$file" <<<"$owners" || :)
    [[ $owner == 1 ]] || complain "${from#"$repo/"} belongs to $owner commits of node-patches/series, not to one"
  done < <(new_files)
  for patch in $(series_patches); do
    patch_header "$patch" | grep -qE '^Subject: \[PATCH\] [a-z,]+: .{1,55}$' ||
      complain "$patch: the Subject is not of the form \"[PATCH] subsystem: what it does\""
    patch_header "$patch" | sed '1,/^$/d' | grep -q . || complain "$patch does not say why"
    ! grep -qE '^(---|\+\+\+) /dev/null' "$series_dir/$patch" ||
      complain "$patch adds or deletes a file: new files go to node-patches/ as they are"
    ! grep -nE '^\+.*[[:blank:]]$' "$series_dir/$patch" >&2 || complain "$patch adds blanks at the end of a line"
  done
  ((bad == 0)) || die "the series has mistakes"
}

# check_slices WORK: what the slices change fits, without fuzz.
check_slices() {
  local work=$1 patch
  for patch in "$series_dir"/slices/*.patch; do
    [[ ! -e $patch ]] || slices | grep -xF "$(basename "$patch")" >/dev/null ||
      die "node-patches/slices/$(basename "$patch") is not of a commit of node-patches/series"
  done
  mkdir "$work/stage"
  slices_stage "$work/stage" 0
  for patch in $(slices); do
    slice_diff "$patch" "$work" | diff "$series_dir/slices/$patch" - >&2 ||
      die "node-patches/slices/$patch is not as tools/patches save would write it (its lines have moved)"
  done
  rm -rf "$work/a" "$work/b"
}

# check_tree TREE WORK: afterwards WORK/0 has the files of TREE that are changed, and WORK/1, WORK/2 ... those after each
# of the patches.
check_tree() {
  local tree=$1 work=$2 number=0 file from patch bad=0
  mkdir "$work/0"
  while IFS= read -r file; do
    from=$(original "$file" "$tree")
    if [[ $from ]]; then
      install -D -m 644 "$from" "$work/0/$file"
    else
      say "conflict: there is no $file"
      bad=1
    fi
  done < <(touched)
  while IFS=$'\t' read -r file from; do
    if [[ -e $tree/$file ]] && ! known "$file" "$tree"; then
      say "conflict: there is a $file, which is not the series'"
      bad=1
    fi
  done < <(new_files)
  while IFS= read -r patch; do
    cp -a "$work/$number" "$work/$((number += 1))"
    grep -q '^diff --git ' "$series_dir/$patch" || continue
    run_patch -d "$work/$number" -p1 -s -f --no-backup-if-mismatch -F 0 -i "$series_dir/$patch" >"$work/log" || :
    # What patch leaves beside a file, for each that has hunks without a place.
    while IFS= read -r file; do
      from=${file#"$work/$number/"}
      say "conflict: ${from%.rej}, in $patch:"
      sed '1,2d; s/^/   /' "$file" >&2
      rm "$file"
      bad=1
    done < <(find "$work/$number" -name '*.rej' | LC_ALL=C sort)
  done < <(series_patches)
  ((bad == 0)) || die "the series does not apply to Node $(tree_version "$tree") in $tree"
}

# check_written WORK: the lines that a patch names are those of the tree that it was made from.
check_written() {
  local work=$1 number=0 patch
  while IFS= read -r patch; do
    rm -rf "$work/a" "$work/b"
    cp -a "$work/$number" "$work/a"
    cp -a "$work/$((number += 1))" "$work/b"
    diff <(sed -n '/^diff --git /,$p' "$series_dir/$patch") <(plain_diff "$work/a" "$work/b") >&2 ||
      die "$patch is not as tools/patches save would write it (its lines have moved, or it was edited by hand)"
  done < <(series_patches)
}

# check_export WORK: git am makes of it what tools/patches apply does.
check_export() {
  local work=$1 file from last
  last=$work/$(series_patches | wc -l)
  while IFS=$'\t' read -r file from; do install -D -m 644 "$from" "$last/$file"; done < <(new_files)
  cp -r "$vendor_dir/vendor" "$last/$vendored"
  patches_export "$work/once"
  patches_export "$work/twice"
  diff -r "$work/once" "$work/twice" >&2 || die "exporting twice gives different bytes"
  (
    cd "$work/0"
    plain_git init -q .
    plain_git add -A
    plain_git commit -q -m base
    # Blanks at the end of lines are those of vendored crates.
    plain_git am -q --whitespace=nowarn "$work"/once/*.patch
  ) >&2 || die "the exported series is not what git am takes"
  diff -r --exclude=.git "$work/0" "$last" >&2 || die "git am gives something else than tools/patches apply"
}
