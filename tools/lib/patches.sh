# shellcheck shell=bash disable=SC2034,SC2154
# The series in node-patches and a Node tree: which files belong to it, and how they get there and back. Sourced after
# common.sh.
#
# Node's files are changed by patches. Files that Node does not have are kept whole: in node-patches/ where they go in
# Node's tree, and the Rust core and the tests at their place in this repository.

series_dir=$repo/node-patches
# In a tree that the series was applied to: what the changed files were before, and checksums of what we put there.
record_dir=deps/tls_splice/.applied

# Neither the user's git configuration nor a surrounding repository may change what git prints here.
plain_git() {
  GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_NOSYSTEM=1 GIT_CEILING_DIRECTORIES=$cache git "$@"
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

# new_files: a line for each, "path in Node's tree, tab, path in this repository".
new_files() {
  listed node-patches | sed -n '/^node-patches\/[^/]*$/d; s,^node-patches/\(.*\)$,\1\t&,p'
  listed Cargo.toml Cargo.lock cbindgen.toml rust include | sed 's,.*,deps/tls_splice/&\t&,'
  listed test/parallel test/common | sed 's,.*,&\t&,'
}

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

# copy_changed FROM TO: keeps the time of a file that has that content already, or ninja would compile it again.
copy_changed() {
  cmp -s "$1" "$2" || {
    mkdir -p "$(dirname "$2")"
    cp "$1" "$2.new.$$"
    mv "$2.new.$$" "$2"
  }
}

# patches_apply TREE [SOURCE]: all or nothing, and again at any time: after a change of the series only the difference is made.
# Everything is worked out in a folder aside first. The record is written before the files, so that a run that was
# interrupted half-way is finished by the next one. SOURCE is what TREE is a copy of, for patches_save.
patches_apply() {
  local tree=$1 record=$1/$record_dir work file from patches
  [[ -e $tree/src/node_version.h && -e $tree/node.gyp ]] || die "$tree is not a Node source tree"
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
    if [[ -e $tree/$file ]] && ! cmp -s "$repo/$from" "$tree/$file" && ! known "$file" "$tree"; then
      die "$tree/$file differs from $from and was not put there by this tool: nothing was changed (tools/patches save $tree keeps an edit)"
    fi
    install -D -m 644 "$repo/$from" "$work/stage/$file"
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
  put "$record/sums" <"$work/sums"
  rm -rf "$work"
  trap - EXIT
}

# plain_diff A B: what changed between two folders, in the one form that the series has: no object names, which depend
# on nothing that a reader could check, and no settings of the user's.
plain_diff() {
  (cd "$1/.." && plain_git diff --no-index --no-prefix --no-color "$(basename "$1")" "$(basename "$2")" || :) |
    sed '/^index [0-9a-f]*\.\.[0-9a-f]*/d'
}

# patch_header PATCH: who, what and why, up to the diff.
patch_header() { sed '/^diff --git /,$d' "$series_dir/$1"; }

# series_new PATCH: the folders and files that come with it.
series_new() {
  sed -n "s/^$1[[:space:]]*//p" "$series_dir/series" | tr -s '[:space:]' '\n' | sed '/^$/d'
}

# new_files_of PATCH: the lines of new_files that belong to its commit.
new_files_of() {
  local path
  while read -r path; do
    new_files | awk -F'\t' -v p="$path" '$1 == p || index($1, p "/") == 1'
  done < <(series_new "$1")
}

# patches_export DIR: mails for git am. The same input gives the same bytes.
patches_export() {
  local out=$1 patches patch number=0 name work file from
  mkdir -p "$out"
  compgen -G "$out/*" >/dev/null && die "$out is not empty"
  work=$(scratch)
  mapfile -t patches < <(series_patches)
  for patch in "${patches[@]}"; do
    number=$((number + 1))
    printf -v name '%04d-%s' "$number" "$patch"
    rm -rf "$work/a" "$work/b"
    mkdir "$work/a" "$work/b"
    while IFS=$'\t' read -r file from; do
      install -D -m 644 "$repo/$from" "$work/b/$file"
    done < <(new_files_of "$patch")
    {
      # git am takes the author and the date from here.
      echo 'From 0000000000000000000000000000000000000000 Mon Sep 17 00:00:00 2001'
      patch_header "$patch" | sed "s/^Subject: \[PATCH\]/Date: Thu, 1 Jan 2026 00:00:00 +0000\nSubject: [PATCH $number\/${#patches[@]}]/"
      echo ---
      sed -n '/^diff --git /,$p' "$series_dir/$patch"
      plain_diff "$work/a" "$work/b"
      echo '-- '
      echo tls-splice
    } >"$out/$name"
  done
  rm -rf "$work"
}

# patches_save TREE [PATCH FILE...]: the way back, for somebody who edited files in a tree that the series was applied
# to. An edit goes to the last patch that touches the file; FILEs that no patch touches yet are added to PATCH. A new
# file of the series that was edited here and not there stays as it is.
patches_save() {
  local tree=$1 add_to=${2-} record=$1/$record_dir work file from patch patches
  shift $(($# < 2 ? 1 : 2))
  [[ -e $record/sums ]] || die "the series was not applied to $tree"
  [[ ! $add_to || -e $series_dir/$add_to ]] || die "there is no $add_to in node-patches"
  while IFS=$'\t' read -r file from; do
    if [[ -e $tree/$file ]] && ! known "$file" "$tree" && ! cmp -s "$repo/$from" "$tree/$file"; then
      grep -qxF "$(sha256sum <"$repo/$from" | cut -c1-64)  $file" "$record/sums" ||
        die "$from and $tree/$file were edited in both places: nothing was saved"
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
    { patch_header "$patch"; plain_diff "$work/a" "$work/b"; } | report "node-patches/$patch"
  done
  while IFS=$'\t' read -r file from; do
    [[ ! -e $tree/$file ]] || known "$file" "$tree" || report "$from" <"$tree/$file"
  done < <(new_files)
  (cd "$tree" && { cut -c67- "$record_dir/sums"; touched; } | LC_ALL=C sort -u | xargs -r -d '\n' sha256sum 2>/dev/null) | put "$record/sums"
  rm -rf "$work"
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

# patches_check [TREE]: what must hold before the series is published. TREE is a Node tree without it, the one that
# tools/build starts from if none is given.
patches_check() {
  local tree=${1-} work patches patch file from owners bad=0
  [[ $tree ]] || tree=$(cat "$repo/out/tree/$record_dir/source" 2>/dev/null) ||
    die 'give the folder of an unchanged Node tree, or run tools/build first'
  mapfile -t patches < <(series_patches)
  complain() { say "error: $*"; bad=1; }
  for file in "$series_dir"/*.patch; do
    [[ $(series_patches | grep -cxF "$(basename "$file")") == 1 ]] ||
      complain "$(basename "$file") is not exactly once in node-patches/series"
  done
  while IFS=$'\t' read -r file from; do
    owners=$(for patch in "${patches[@]}"; do new_files_of "$patch"; done | cut -f1 | grep -cxF "$file" || :)
    [[ $owners == 1 ]] || complain "$from belongs to $owners commits of node-patches/series, not to one"
    [[ ! -e $tree/$file ]] || complain "$file is new in node-patches, but Node has such a file"
  done < <(new_files)
  for patch in "${patches[@]}"; do
    patch_header "$patch" | grep -qE '^Subject: \[PATCH\] [a-z,]+: .{1,55}$' ||
      complain "$patch: the Subject is not of the form \"[PATCH] subsystem: what it does\""
    patch_header "$patch" | sed '1,/^$/d' | grep -q . || complain "$patch does not say why"
    ! grep -qE '^(---|\+\+\+) /dev/null' "$series_dir/$patch" ||
      complain "$patch adds or deletes a file: new files go to node-patches/ as they are"
    ! grep -nE '^\+.*[[:blank:]]$' "$series_dir/$patch" >&2 || complain "$patch adds blanks at the end of a line"
  done
  ((bad == 0)) || die "the series has mistakes"

  work=$(scratch)
  mkdir "$work/tree"
  while IFS= read -r file; do
    [[ -e $tree/$file ]] || die "Node has no $file, which the series changes"
    install -D -m 644 "$tree/$file" "$work/tree/$file"
  done < <(touched)
  cp -a "$work/tree" "$work/applied"
  for patch in "${patches[@]}"; do
    rm -rf "$work/a" "$work/b"
    cp -a "$work/applied" "$work/a"
    patch_stage "$work/applied" 0 "$patch" || die "the series does not apply without fuzz"
    cp -a "$work/applied" "$work/b"
    diff <(sed -n '/^diff --git /,$p' "$series_dir/$patch") <(plain_diff "$work/a" "$work/b") >&2 ||
      die "$patch is not as tools/patches save would write it (its lines have moved, or it was edited by hand)"
  done
  while IFS=$'\t' read -r file from; do install -D -m 644 "$repo/$from" "$work/applied/$file"; done < <(new_files)

  patches_export "$work/once"
  patches_export "$work/twice"
  diff -r "$work/once" "$work/twice" >&2 || die "exporting twice gives different bytes"
  (
    cd "$work/tree"
    export GIT_AUTHOR_NAME=check GIT_AUTHOR_EMAIL=check@localhost GIT_COMMITTER_NAME=check GIT_COMMITTER_EMAIL=check@localhost
    plain_git init -q .
    plain_git add -A
    plain_git commit -q -m base
    plain_git am -q "$work"/once/*.patch
  ) >&2 || die "the exported series is not what git am takes"
  diff -r --exclude=.git "$work/tree" "$work/applied" >&2 || die "git am gives something else than tools/patches apply"
  rm -rf "$work"
}
