data "aws_partition" "this" {}
data "aws_caller_identity" "this" {}

locals {
  account = "arn:${data.aws_partition.this.partition}:iam::${data.aws_caller_identity.this.account_id}"
}

# Profile hardened: one key for the artifact bucket and for disks. Roles find it by its tag.
resource "aws_kms_key" "this" {
  count                   = local.hardened ? 1 : 0
  description             = "Buckets and disks of environment ${var.environment}."
  enable_key_rotation     = true
  deletion_window_in_days = 7
  tags                    = local.tags
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Sid       = "TheAccountsPoliciesDecide"
        Effect    = "Allow"
        Principal = { AWS = "${local.account}:root" }
        Action    = "kms:*"
        Resource  = "*" # in a key's policy: this key
      },
      {
        # The services that start machines open their disks. A role that does not exist yet cannot be named as a
        # principal, and these come to be with the first fleet.
        Sid       = "DisksOfFleets"
        Effect    = "Allow"
        Principal = { AWS = "*" }
        Action    = ["kms:CreateGrant", "kms:Decrypt", "kms:DescribeKey", "kms:GenerateDataKeyWithoutPlaintext", "kms:ReEncrypt*"]
        Resource  = "*"
        Condition = {
          StringEquals = { "kms:CallerAccount" = data.aws_caller_identity.this.account_id }
          ArnEquals = { "aws:PrincipalArn" = [
            "${local.account}:role/aws-service-role/spot.amazonaws.com/AWSServiceRoleForEC2Spot",
            "${local.account}:role/aws-service-role/ec2fleet.amazonaws.com/AWSServiceRoleForEC2Fleet",
          ] }
        }
      },
    ]
  })
}
