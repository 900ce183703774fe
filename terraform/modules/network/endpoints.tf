data "aws_partition" "this" {}

# S3 through a gateway costs nothing, also for the gigabytes, and needs no way to the internet.
resource "aws_vpc_endpoint" "s3" {
  vpc_id            = aws_vpc.this.id
  service_name      = "com.amazonaws.${var.region}.s3"
  vpc_endpoint_type = "Gateway"
  route_table_ids   = [aws_route_table.this.id]
  tags              = local.named
  policy = length(var.buckets) == 0 ? null : jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Sid       = "NamedBucketsOnly"
      Effect    = "Allow"
      Principal = "*" # roles and links decide who; this decides where to
      Action    = ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:ListBucket"]
      Resource = flatten([for bucket in var.buckets : [
        "arn:${data.aws_partition.this.partition}:s3:::${bucket}", "arn:${data.aws_partition.this.partition}:s3:::${bucket}/*",
      ]])
    }]
  })
}

resource "aws_vpc_endpoint" "service" {
  for_each            = var.services
  vpc_id              = aws_vpc.this.id
  service_name        = "com.amazonaws.${var.region}.${each.key}"
  vpc_endpoint_type   = "Interface"
  private_dns_enabled = true
  subnet_ids          = [for subnet in aws_subnet.this : subnet.id]
  security_group_ids  = [aws_security_group.service[0].id]
  tags                = local.named
}
