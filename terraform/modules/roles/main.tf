data "aws_partition" "this" {}
data "aws_caller_identity" "this" {}

locals {
  partition   = data.aws_partition.this.partition
  account     = data.aws_caller_identity.this.account_id
  prefix      = "mlinfra-prefect"
  ec2         = "arn:${local.partition}:ec2:*:${local.account}"
  node_arn    = "arn:${local.partition}:iam::${local.account}:role/${local.prefix}-node-${var.environment}"
  state_arn   = "arn:${local.partition}:s3:::${var.state_bucket}"
  artifacts   = "arn:${local.partition}:s3:::${var.artifact_bucket}"
  lease_keys  = [for key in ["ledger", "lease", "attempt", "flow-run", "owner", "environment", "deadline"] : "${local.prefix}:${key}"]
  environment = "${local.prefix}:environment"
  ledger      = "${local.prefix}:ledger"

  # Whoever takes a role by AssumeRole. The account's root stands for "as the account's own policies say".
  trust = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Action    = "sts:AssumeRole"
      Principal = { AWS = length(var.trusted_arns) > 0 ? var.trusted_arns : ["arn:${local.partition}:iam::${local.account}:root"] }
    }]
  })
}

# --- a node -----------------------------------------------------------------------------------------------------------

resource "aws_iam_role" "node" {
  name        = "${local.prefix}-node-${var.environment}"
  description = "Nodes of environment ${var.environment}: each reaches its own mailbox and nothing else."
  tags        = var.tags
  assume_role_policy = jsonencode({
    Version   = "2012-10-17"
    Statement = [{ Effect = "Allow", Action = "sts:AssumeRole", Principal = { Service = "ec2.amazonaws.com" } }]
  })
}

resource "aws_iam_role_policy" "node" {
  name   = "own-mailbox"
  role   = aws_iam_role.node.id
  policy = local.node_policy
}

resource "aws_iam_instance_profile" "node" {
  name = aws_iam_role.node.name
  role = aws_iam_role.node.name
  tags = var.tags
}

# --- who leases, and who reaps ----------------------------------------------------------------------------------------

resource "aws_iam_policy" "ending" {
  name        = "${local.prefix}-ending-${var.environment}"
  description = "Look everywhere, and end what a lease of environment ${var.environment} has."
  policy      = local.ending_policy
  tags        = var.tags
}

resource "aws_iam_policy" "creating" {
  name        = "${local.prefix}-creating-${var.environment}"
  description = "Create what a lease of environment ${var.environment} needs, with the tags of a lease."
  policy      = local.creating_policy
  tags        = var.tags
}

resource "aws_iam_policy" "storing" {
  name        = "${local.prefix}-storing-${var.environment}"
  description = "The ledger, mailboxes and checkpoints of environment ${var.environment}."
  policy      = local.storing_policy
  tags        = var.tags
}

resource "aws_iam_role" "creator" {
  name               = "${local.prefix}-creator-${var.environment}"
  description        = "Flows and keepers of environment ${var.environment}."
  assume_role_policy = local.trust
  tags               = var.tags
}

resource "aws_iam_role" "reaper" {
  name               = "${local.prefix}-reaper-${var.environment}"
  description        = "The reaper of environment ${var.environment}: it ends and creates nothing."
  assume_role_policy = local.trust
  tags               = var.tags
}

locals {
  # The keys are known when planning, the ARNs are not.
  creator_has = { ending = aws_iam_policy.ending.arn, creating = aws_iam_policy.creating.arn, storing = aws_iam_policy.storing.arn }
  reaper_has  = { ending = aws_iam_policy.ending.arn, storing = aws_iam_policy.storing.arn }
}

resource "aws_iam_role_policy_attachment" "creator" {
  for_each   = local.creator_has
  role       = aws_iam_role.creator.name
  policy_arn = each.value
}

resource "aws_iam_role_policy_attachment" "reaper" {
  for_each   = local.reaper_has
  role       = aws_iam_role.reaper.name
  policy_arn = each.value
}
